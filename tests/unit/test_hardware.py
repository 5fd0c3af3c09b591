"""The hardware probe: its parsers on the output of real machines, and its script in every installed shell."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycluster import gpus, hardware
from lazycluster._remote.host_probe import known_facts
from lazycluster._ssh.host_scripts import PROBE_SCRIPT, build_probe_script
from lazycluster.hardware import CgroupLimits, Gpu, HostInfo, MigDevice

CAPTURES = Path(__file__).parent / "captures" / "hardware"
UNAME, PROCESSORS = "LAZYCLUSTER_UNAME", "LAZYCLUSTER_PROCESSORS"
KIB, MIB, GIB = 1024, 1024**2, 1024**3

SHELLS = [
    pytest.param(argv, id=" ".join(argv), marks=pytest.mark.skipif(not shutil.which(argv[0]), reason="not installed"))
    for argv in (
        ["sh"],
        ["dash"],
        ["bash"],
        ["bash", "--posix"],
        ["busybox", "sh"],
        ["zsh", "--emulate", "sh"],
    )
]


def probe_output(*sections: tuple[str, str, int], done: bool = True) -> str:
    """Return texts between the marks of the probe."""
    framed = [
        f"@@ lazycluster begin {name}\n{text}\n@@ lazycluster end {name} {code}\n" for name, text, code in sections
    ]
    return "\n" + "".join(framed) + ("@@ lazycluster done\n" if done else "")


# Processors, memory, control groups ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("2\n", 2),
        ("  64  \n", 64),
        ("sh: 3: nproc: not found\n8\n", 8),  # dash, then getconf
        ("sh: nproc: command not found\n10\n", 10),  # macOS
        ("", None),
        ("undefined\n", None),
        ("٤\n", None),
    ],
)
def test_parse_processors_returns_count(text: str, cores: int | None) -> None:
    assert hardware.parse_processors(text) == cores


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        # A Raspberry Pi 2, blanks squeezed: github.com/eidottermihi/rpicheck/pull/107
        ("MemTotal: 949328 kB\nMemFree: 49512 kB\nMemAvailable: 884628 kB\nBuffers: 437356 kB\n", 949328 * KIB),
        # A server with huge pages: github.com/htop-dev/htop/issues/447
        ("MemTotal:       593026380 kB\nMemFree:        22093964 kB\nMemAvailable:   34258672 kB\n", 593026380 * KIB),
        # A small cloud machine, Linux 3.13: github.com/soldair/node-procfs-stats/issues/9
        (
            "MemTotal:        1019732 kB\r\nMemFree:           50012 kB\r\nSwapTotal:             0 kB\r\n",
            1019732 * KIB,
        ),
        # An NVIDIA DGX Spark: github.com/XuehaiPan/nvitop/pull/208
        ("MemTotal:       127600748 kB\nMemAvailable:   118566368 kB\n", 127600748 * KIB),
        ("cat: /proc/meminfo: Permission denied\n", None),
        ("MemTotal:       garbage kB\n", None),
        ("SwapTotal:      1024 kB\n", None),
        ("", None),
    ],
)
def test_parse_meminfo_returns_bytes(text: str, memory: int | None) -> None:
    assert hardware.parse_meminfo(text) == memory


SLURM = "/sys/fs/cgroup/system.slice/slurm-worker-1_slurmstepd.scope/job_4749/step_0/user"


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        pytest.param("", CgroupLimits(), id="none"),
        pytest.param(
            "/sys/fs/cgroup/cpu.max=150000 100000\n/sys/fs/cgroup/memory.max=131072000\n",
            CgroupLimits(1.5, 131072000),  # docker run --cpus=1.5 --memory=125m: github.com/komuw/ong/issues/100
            id="v2-container",
        ),
        pytest.param(
            f"{SLURM}/task_0/memory.max=max\n{SLURM}/memory.max=4194304000\n{SLURM}/cpu.max=max 100000\n",
            CgroupLimits(None, 4194304000),  # github.com/NVIDIA/enroot/issues/169
            id="v2-ancestor-binds",
        ),
        pytest.param(
            "/sys/fs/cgroup/a/b/cpu.max=400000 100000\n/sys/fs/cgroup/a/cpu.max=50000 200000\n",
            CgroupLimits(0.25, None),
            id="v2-strictest",
        ),
        pytest.param(
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us=-1\n/sys/fs/cgroup/cpu/cpu.cfs_period_us=100000\n"
            "/sys/fs/cgroup/memory/memory.limit_in_bytes=9223372036854771712\n",
            CgroupLimits(),
            id="v1-no-limit",
        ),
        pytest.param(
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us=150000\r\n/sys/fs/cgroup/cpu/cpu.cfs_period_us=100000\r\n"
            "/sys/fs/cgroup/memory/memory.limit_in_bytes=4294967296\r\n",
            CgroupLimits(1.5, 4294967296),  # docker run -m 4g: github.com/moby/moby/issues/12394
            id="v1-container",
        ),
        pytest.param(
            "/sys/fs/cgroup/cpu/x=y/cpu.cfs_quota_us=200000\n/sys/fs/cgroup/cpu/x=y/cpu.cfs_period_us=100000\n",
            CgroupLimits(2.0, None),
            id="equals-sign-in-path",
        ),
        pytest.param(
            "/a/cpu.cfs_quota_us=100000\n/b/cpu.cfs_quota_us=\n/c/cpu.max=1 0\n/d/cpu.max=max\n/e/memory.max=lots\n"
            "sh: cannot open /proc/self/cgroup\n/f/memory.max=\n",
            CgroupLimits(),
            id="garbled",
        ),
    ],
)
def test_parse_cgroups_returns_limits(text: str, limits: CgroupLimits) -> None:
    assert hardware.parse_cgroups(text) == limits


# Names and versions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            (
                'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\n'
                'VERSION="12 (bookworm)"\nVERSION_CODENAME=bookworm\nID=debian\n'
            ),
            "Debian GNU/Linux 12 (bookworm)",
        ),
        (
            (
                'PRETTY_NAME="Ubuntu 22.04.3 LTS"\nNAME="Ubuntu"\nVERSION_ID="22.04"\n'
                'VERSION="22.04.3 LTS (Jammy Jellyfish)"\nVERSION_CODENAME=jammy\nID=ubuntu\nID_LIKE=debian\n'
            ),
            "Ubuntu 22.04.3 LTS",
        ),
        (
            (
                'NAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.18.3\nPRETTY_NAME="Alpine Linux v3.18"\n'
                'HOME_URL="https://alpinelinux.org/"\n'
            ),
            "Alpine Linux v3.18",
        ),
        (
            (
                'NAME="CentOS Linux"\nVERSION="7 (Core)"\nID="centos"\nID_LIKE="rhel fedora"\nVERSION_ID="7"\n'
                'PRETTY_NAME="CentOS Linux 7 (Core)"\nANSI_COLOR="0;31"\nCPE_NAME="cpe:/o:centos:centos:7"\n\n'
                'CENTOS_MANTISBT_PROJECT="CentOS-7"\n'
            ),
            "CentOS Linux 7 (Core)",
        ),
        (
            (
                'NAME="Rocky Linux"\nVERSION="9.6 (Blue Onyx)"\nID="rocky"\nPLATFORM_ID="platform:el9"\n'
                'PRETTY_NAME="Rocky Linux 9.6 (Blue Onyx)"\n'
            ),
            "Rocky Linux 9.6 (Blue Onyx)",
        ),
        ('NAME="Arch Linux"\nPRETTY_NAME="Arch Linux"\nID=arch\nBUILD_ID=rolling\n', "Arch Linux"),
        ("NAME=Fedora\r\nVERSION='41 (Server \\ Edition)'\r\n", "Fedora 41 (Server \\ Edition)"),
        ('# a comment\nPRETTY_NAME="The \\"Best\\" \\$5 Linux"\n', 'The "Best" $5 Linux'),
        ('PRETTY_NAME=""\nNAME=Void\n', "Void"),
        ("cat: /etc/os-release: No such file or directory\n", None),
        ("", None),
    ],
)
def test_parse_os_release_returns_name(text: str, name: str | None) -> None:
    assert hardware.parse_os_release(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ProductName:\t\tmacOS\nProductVersion:\t\t14.2.1\nBuildVersion:\t\t23C71\n", "macOS 14.2.1"),
        ("ProductName:\tMac OS X\nProductVersion:\t10.15.7\nBuildVersion:\t19H15\n", "Mac OS X 10.15.7"),
        ("sh: sw_vers: command not found\n", None),
        ("", None),
    ],
)
def test_parse_sw_vers_returns_name(text: str, name: str | None) -> None:
    assert hardware.parse_sw_vers(text) == name


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        # A MacBook Pro of 2019 and an M1: part of `sysctl hw`
        ("hw.ncpu: 8\nhw.memsize: 17179869184\n", {"hw.ncpu": 8, "hw.memsize": 17179869184}),
        ("hw.memsize: 17179869184\nhw.memsize_usable: 16383606784\n", None),
        ("sysctl: unknown oid 'hw.cpufrequency_max'\nhw.ncpu: 10\n", {"hw.ncpu": 10}),
        ("hw.model: Mac14,9\n", {}),
        ("", {}),
    ],
)
def test_parse_sysctl_returns_numbers(text: str, numbers: dict[str, int] | None) -> None:
    expected = {"hw.memsize": 17179869184, "hw.memsize_usable": 16383606784} if numbers is None else numbers
    assert hardware.parse_sysctl(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Linux 6.1.0-18-amd64 x86_64\n", ("Linux", "6.1.0-18-amd64", "x86_64")),
        ("Darwin 23.1.0 arm64\n", ("Darwin", "23.1.0", "arm64")),
        ("Linux\n", ("Linux", "", "")),
        ("", ("", "", "")),
    ],
)
def test_parse_uname_returns_words(text: str, words: tuple[str, str, str]) -> None:
    assert hardware.parse_uname(text) == words


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("3.11.2 /usr/bin/python3\n", ("3.11.2", "/usr/bin/python3")),
        ("3.13.0rc1 /opt/my pythons/bin/python3.13\r\n", ("3.13.0rc1", "/opt/my pythons/bin/python3.13")),
        ("sh: 1: python3.12: not found\n3.9.2+ /usr/bin/python3\n", ("3.9.2+", "/usr/bin/python3")),
        (
            (
                "pyenv: python3.12: command not found\n\nThe `python3.12' command exists in these Python versions:\n"
                "  3.12.1\n\n"
                "3.10.13 /home/u/.pyenv/versions/3.10.13/bin/python3.10\n"
            ),
            ("3.10.13", "/home/u/.pyenv/versions/3.10.13/bin/python3.10"),
        ),
        ("2.7.18 \n", ("2.7.18", None)),
        ("sh: 1: python3: not found\n", (None, None)),
        ("", (None, None)),
    ],
)
def test_parse_python_returns_version_and_path(text: str, python: tuple[str | None, str | None]) -> None:
    assert hardware.parse_python(text) == python


# GPUs ----------------------------------------------------------------------------------------------------------------

UUID = "GPU-63d1e50a-b952-d15c-0740-12bc14859142"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            # Maxwell, 2016, two of eight: github.com/wookayin/gpustat/issues/5
            "index, uuid, name, temperature.gpu, utilization.gpu [%], memory.used [MiB], memory.total [MiB]\n"
            "0, GPU-004f693d-767b-b215-b4a9-a18af0ffd643, GeForce GTX TITAN X, 25, 0, 802, 12206\n"
            "1, GPU-86fe97db-bf54-a056-4e8d-9b07e1a298e7, GeForce GTX TITAN X, 54, 86, 10032, 12206\n",
            [
                Gpu(0, "GeForce GTX TITAN X", 12206 * MIB, None, "GPU-004f693d-767b-b215-b4a9-a18af0ffd643", 0),
                Gpu(1, "GeForce GTX TITAN X", 12206 * MIB, None, "GPU-86fe97db-bf54-a056-4e8d-9b07e1a298e7", 86),
            ],
            id="GTX TITAN X",
        ),
        pytest.param(
            # Turing, without the index, a bare N/A: github.com/Ricks-Lab/gpu-utils/issues/83
            "power.limit [W], memory.total [MiB], driver_version, name, uuid, temperature.memory, utilization.gpu [%]\n"
            "200.00, 7979, 440.64, GeForce RTX 2080, GPU-22b2c6ac-2d49-4863-197c-9c469071178a, N/A, 86\n",
            [Gpu(0, "GeForce RTX 2080", 7979 * MIB, "440.64", "GPU-22b2c6ac-2d49-4863-197c-9c469071178a", 86)],
            id="RTX 2080",
        ),
        pytest.param(
            # Pascal, from a benchmark's report on driver 580
            "index, uuid, name, driver_version, memory.total [MiB], compute_cap\n"
            "0, GPU-0d70be84-560c-cf1e-8d49-c41015f45415, Tesla P100-PCIE-16GB, 580.178.04, 16384 MiB, 6.0\n",
            [Gpu(0, "Tesla P100-PCIE-16GB", 16384 * MIB, "580.178.04", "GPU-0d70be84-560c-cf1e-8d49-c41015f45415")],
            id="P100",
        ),
        pytest.param(
            # Volta, two of eight, with units
            "index, name, memory.total [MiB], memory.used [MiB], utilization.gpu [%], temperature.gpu\n"
            "5, Tesla V100-SXM2-32GB, 32764 MiB, 4 MiB, 0 %, 37\n"
            "6, Tesla V100-SXM2-32GB, 32768 MiB, 13928 MiB, 100 %, 51\n",
            [
                Gpu(5, "Tesla V100-SXM2-32GB", 32764 * MIB, utilization=0),
                Gpu(6, "Tesla V100-SXM2-32GB", 32768 * MIB, utilization=100),
            ],
            id="V100",
        ),
        pytest.param(
            # A laptop: github.com/con/duct, its tests
            "index, name, pci.bus_id, driver_version, memory.total [MiB], compute_mode\r\n"
            "0, NVIDIA RTX A5500 Laptop GPU, 00000000:01:00.0, 535.183.01, 16384 MiB, Default\r\n",
            [Gpu(0, "NVIDIA RTX A5500 Laptop GPU", 16384 * MIB, "535.183.01")],
            id="RTX A5500 Laptop",
        ),
        pytest.param(
            # Blackwell, consumer
            "name, driver_version, memory.total [MiB]\nNVIDIA GeForce RTX 5090, 570.153.02, 32607 MiB\n",
            [Gpu(0, "NVIDIA GeForce RTX 5090", 32607 * MIB, "570.153.02")],
            id="RTX 5090",
        ),
        pytest.param(
            # Memory shared with the host: github.com/XuehaiPan/nvitop/pull/208
            "name, driver_version, memory.total [MiB], utilization.gpu [%]\nNVIDIA GB10, 580.173.02, [N/A], 0 %\n",
            [Gpu(0, "NVIDIA GB10", None, "580.173.02", None, 0)],
            id="GB10",
        ),
        pytest.param(
            # A Jetson: github.com/Chen-zexi/vllm-cli/pull/11
            "index, name, memory.total [MiB], memory.used [MiB], utilization.gpu [%], driver_version, uuid\n"
            "0, Orin (nvgpu), [N/A], [N/A], [N/A], [N/A], [N/A]\n",
            [Gpu(0, "Orin (nvgpu)")],
            id="Jetson Orin",
        ),
        pytest.param(
            # In MIG mode there is no utilization: nvidia_gpu_exporter's capture of an H100, driver 590.48.01
            "index, name, memory.total [MiB], driver_version, uuid, utilization.gpu [%]\n"
            f"0, NVIDIA H100 80GB HBM3, 81559, 590.48.01, {UUID}, [N/A]\n",
            [Gpu(0, "NVIDIA H100 80GB HBM3", 81559 * MIB, "590.48.01", UUID)],
            id="H100 MIG",
        ),
        pytest.param(
            # Old drivers say it in other words: github.com/enkore/i3pystatus/pull/776
            "index, name, memory.total [MiB], utilization.gpu [%]\n0, GeForce GT 730, 2004, [Not Supported]\n",
            [Gpu(0, "GeForce GT 730", 2004 * MIB)],
            id="not supported",
        ),
        pytest.param("index, name, memory.total [MiB]\n", [], id="header only"),
        pytest.param("", [], id="nothing"),
    ],
)
def test_parse_gpus_returns_records(text: str, expected: list[Gpu]) -> None:
    assert gpus.parse_gpus(text) == (expected, [])


HEADER = "index, name, memory.total [MiB], driver_version, uuid, utilization.gpu [%]\n"


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        (
            (
                "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the "
                "latest NVIDIA driver is installed and running.\n\n"
            ),
            [
                (
                    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the "
                    "latest NVIDIA driver is installed and running."
                )
            ],
        ),
        (
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.161\n",
            ["Failed to initialize NVML: Driver/library version mismatch", "NVML library version: 535.161"],
        ),
        ("No devices were found\n", ["No devices were found"]),
        (
            'Field "uuid" is not a valid field to query.\n\n',
            ['Field "uuid" is not a valid field to query.'],
        ),
        (
            "Unable to determine the device handle for GPU 0000:0B:00.0: Unknown Error\n",
            ["Unable to determine the device handle for GPU 0000:0B:00.0: Unknown Error"],
        ),
    ],
)
def test_parse_gpus_broken_driver_returns_warnings(text: str, warnings: list[str]) -> None:
    assert gpus.parse_gpus(text) == ([], warnings)


def test_parse_gpus_faulty_gpu_is_listed_with_warning() -> None:
    row = f"0, NVIDIA H100 80GB HBM3, 81559, 570.124.06, {UUID}, [GPU requires reset]\n"
    found, warnings = gpus.parse_gpus(HEADER + row + "WARNING: infoROM is corrupted at gpu 0000:00:1E.0\n")
    assert found == [Gpu(0, "NVIDIA H100 80GB HBM3", 81559 * MIB, "570.124.06", UUID)]
    assert warnings == [
        "GPU 0: utilization.gpu: GPU requires reset",
        "WARNING: infoROM is corrupted at gpu 0000:00:1E.0",
    ]


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        pytest.param(
            # Ten Tesla K80 of CentOS 7, two of them
            "GPU 0: Tesla K80 (UUID: GPU-4095713a-1f9b-791d-841d-8b35143127d4)\n"
            "GPU 1: Tesla K80 (UUID: GPU-ab541226-7c4f-ab59-3927-1535f68a3a8f)\n",
            {},
            id="K80",
        ),
        pytest.param(
            # Drivers before 470 name the parts after the GPU: the user guide of ThetaGPU (ALCF)
            "GPU 0: A100-SXM4-40GB (UUID: GPU-2fa5cf01-9520-1bc1-995b-cc0c6d9bca7c)\n"
            "  MIG 1c.3g.20gb Device 0: (UUID: MIG-GPU-2fa5cf01-9520-1bc1-995b-cc0c6d9bca7c/1/0)\n"
            "  MIG 1c.3g.20gb Device 1: (UUID: MIG-GPU-2fa5cf01-9520-1bc1-995b-cc0c6d9bca7c/2/0)\n",
            {
                0: (
                    MigDevice(0, "1c.3g.20gb", "MIG-GPU-2fa5cf01-9520-1bc1-995b-cc0c6d9bca7c/1/0"),
                    MigDevice(1, "1c.3g.20gb", "MIG-GPU-2fa5cf01-9520-1bc1-995b-cc0c6d9bca7c/2/0"),
                )
            },
            id="A100, old driver",
        ),
        pytest.param(
            # github.com/influxdata/telegraf/issues/5812, MIG on the first of four
            "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-513536b6-7d19-9063-b049-1e69664bb298)\r\n"
            "  MIG 1g.20gb     Device  0: (UUID: MIG-ce861fb0-a248-58ce-a9a8-f9adbc22a66a)\r\n"
            "  MIG 1g.20gb     Device  1: (UUID: MIG-a45882f0-9215-5733-a0c1-49286ab31cb5)\r\n"
            "GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-d8594bd4-0fc3-8595-e355-7c98138f3b95)\r\n",
            {
                0: (
                    MigDevice(0, "1g.20gb", "MIG-ce861fb0-a248-58ce-a9a8-f9adbc22a66a"),
                    MigDevice(1, "1g.20gb", "MIG-a45882f0-9215-5733-a0c1-49286ab31cb5"),
                )
            },
            id="A100",
        ),
        pytest.param(
            # Two H100 of eight, shortened: github.com/utkuozdemir/nvidia_gpu_exporter, its test data
            f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUID})\n"
            "  MIG 1g.10gb     Device  0: (UUID: MIG-4d0efb7d-0970-51d9-b761-0686be6b8af3)\n"
            "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-7e7d2a20-56b8-3220-e75c-1f3185864bda)\n"
            "  MIG 1g.10gb     Device  0: (UUID: MIG-9e577b56-8dad-58fa-9799-b034b7e42ec9)\n",
            {
                0: (MigDevice(0, "1g.10gb", "MIG-4d0efb7d-0970-51d9-b761-0686be6b8af3"),),
                1: (MigDevice(0, "1g.10gb", "MIG-9e577b56-8dad-58fa-9799-b034b7e42ec9"),),
            },
            id="H100",
        ),
        pytest.param("Failed to initialize NVML: Unknown Error\n", {}, id="broken"),
    ],
)
def test_parse_mig_devices_by_gpu(text: str, devices: dict[int, tuple[MigDevice, ...]]) -> None:
    assert gpus.parse_mig_devices(text) == devices


# The whole output ----------------------------------------------------------------------------------------------------


def test_probe_output_captured_is_parsed() -> None:
    # Run in a control group whose parent has a quota of 150000/100000 and a limit of 512 MiB.
    info = hardware.parse_probe_output((CAPTURES / "debian-12-cgroup-v1.txt").read_text())
    assert info == HostInfo(
        os="Debian GNU/Linux 12 (bookworm)",
        kernel="Linux",
        kernel_version="6.18.44-fc-v669",
        machine="x86_64",
        cpu_cores=1.5,
        memory=512 * MIB,
        python_version="3.11.2",
        python_executable="/usr/bin/python3",
    )
    assert info.memory_in_mb == 512
    assert info.gpu_count == 0


def test_probe_output_with_noise_is_parsed() -> None:
    captured = (CAPTURES / "debian-12-cgroup-v1.txt").read_text()
    noisy = "*** Welcome! ***\nyou have mail" + captured + "logout\n"
    expected = hardware.parse_probe_output(captured)
    assert hardware.parse_probe_output(noisy) == expected
    assert hardware.parse_probe_output(noisy.replace("\n", "\r\n")) == expected
    assert hardware.parse_probe_output(captured.rstrip("\n") + "\r") == expected


def test_probe_output_of_macos_is_parsed() -> None:
    info = hardware.parse_probe_output(
        probe_output(
            ("uname", "Darwin 23.2.0 arm64\n", 0),
            ("processors", "sh: nproc: command not found\n8\n", 0),
            ("sw_vers", "ProductName:\t\tmacOS\nProductVersion:\t\t14.2.1\nBuildVersion:\t\t23C71\n", 0),
            ("sysctl", "hw.ncpu: 8\nhw.memsize: 17179869184\n", 0),
            ("python", "3.9.6 /Library/Developer/CommandLineTools/usr/bin/python3\n", 0),
        )
    )
    assert (info.os, info.kernel, info.machine) == ("macOS 14.2.1", "Darwin", "arm64")
    assert (info.cpu_cores, info.memory, info.memory_in_mb) == (8.0, 16 * GIB, 16384)
    assert info.python_version == "3.9.6"
    assert info.warnings == ()


def test_probe_output_sysctl_replaces_missing_tools() -> None:
    info = hardware.parse_probe_output(
        probe_output(("processors", "", 127), ("sysctl", "hw.ncpu: 10\nhw.memsize: 34359738368\n", 0))
    )
    assert (info.cpu_cores, info.memory) == (10.0, 32 * GIB)


def test_probe_output_joins_gpus_and_mig_devices() -> None:
    info = hardware.parse_probe_output(
        probe_output(
            ("gpus", f"{HEADER}0, NVIDIA H100 80GB HBM3, 81559, 590.48.01, {UUID}, [N/A]\n", 0),
            ("mig", f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUID})\n  MIG 1g.10gb     Device  0: (UUID: MIG-x)\n", 0),
        )
    )
    assert info.gpus == (
        Gpu(0, "NVIDIA H100 80GB HBM3", 81559 * MIB, "590.48.01", UUID, None, (MigDevice(0, "1g.10gb", "MIG-x"),)),
    )
    assert info.gpu_count == 1


ENOUGH = (("processors", "4\n", 0), ("meminfo", "MemTotal:  1048576 kB\n", 0))


@pytest.mark.parametrize(
    ("text", "code", "warnings"),
    [
        ("No devices were found\n", 6, ("nvidia-smi: No devices were found",)),
        ("", 12, ("nvidia-smi: exit status 12",)),
        ("", 124, ("nvidia-smi: no answer in time",)),
        ("", 0, ()),
    ],
)
def test_probe_output_broken_driver_is_a_warning(text: str, code: int, warnings: tuple[str, ...]) -> None:
    info = hardware.parse_probe_output(probe_output(*ENOUGH, ("gpus", text, code)))
    assert info.gpus == ()
    assert info.warnings == warnings


def test_probe_output_faulty_gpu_still_counts() -> None:
    text = f"{HEADER}0, Tesla T4, 15360, 535.161.08, {UUID}, 0\nWARNING: infoROM is corrupted at gpu 0000:00:1E.0\n"
    info = hardware.parse_probe_output(probe_output(*ENOUGH, ("gpus", text, 14)))
    assert info.gpu_count == 1
    assert info.warnings == ("nvidia-smi: WARNING: infoROM is corrupted at gpu 0000:00:1E.0",)


def test_probe_output_missing_facts_are_warnings() -> None:
    info = hardware.parse_probe_output(probe_output(("uname", "Linux 2.6.32-754.el6.x86_64 x86_64\n", 0)))
    assert info.os == "Linux 2.6.32-754.el6.x86_64"
    assert (info.cpu_cores, info.memory, info.python_version, info.python_executable) == (0.0, 0, None, None)
    assert info.warnings == ("the number of CPU cores is unknown", "the amount of memory is unknown")


def test_probe_output_cut_short_keeps_whole_facts() -> None:
    info = hardware.parse_probe_output(probe_output(*ENOUGH, done=False) + "@@ lazycluster begin gpus\nindex, na")
    assert (info.cpu_cores, info.memory) == (4.0, GIB)
    assert info.warnings == ("the probe was cut short", "nvidia-smi: index, na", "nvidia-smi: no answer in time")


@pytest.mark.parametrize("output", ["", "Last login: today\n", "sh: 1: Syntax error\n", "@@ lazycluster done\n"])
def test_probe_output_of_other_kind_raises_value_error(output: str) -> None:
    with pytest.raises(ValueError, match="not the output of the hardware probe"):
        hardware.parse_probe_output(output)


@given(st.lists(st.tuples(st.sampled_from(["uname", "meminfo", "cgroups", "gpus", "mig", "python"]), st.text())))
def test_probe_output_with_any_text_never_raises(sections: list[tuple[str, str]]) -> None:
    info = hardware.parse_probe_output(
        probe_output(("processors", "2", 0), *((name, text, 0) for name, text in sections))
    )
    assert info.cpu_cores >= 0
    assert info.memory >= 0


# The script ----------------------------------------------------------------------------------------------------------


def run(
    script: str, shell: list[str], *, path: str | None = None, env: dict[str, str] | None = None, stdin: bool = False
) -> str:
    """Run the script in a shell; its exit status must be 0, and it must not print to standard error."""
    program = shutil.which(shell[0])
    assert program is not None
    result = subprocess.run(
        [program, *shell[1:], *([] if stdin else ["-c", script])],
        input=script if stdin else "not for the children",
        env={"PATH": path or os.environ["PATH"], "HOME": str(Path.home()), **(env or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert result.stderr == ""
    return result.stdout


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")


@needs_linux
@pytest.mark.parametrize("shell", SHELLS)
def test_probe_finds_facts_of_this_machine(shell: list[str]) -> None:
    if sys.platform != "linux":  # pragma: no cover - for the type checker
        return
    info = hardware.parse_probe_output(run(build_probe_script(sys.executable), shell, env={"OMP_NUM_THREADS": "1"}))
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    assert 0 < info.cpu_cores <= len(os.sched_getaffinity(0))
    assert 0 < info.memory <= int(total.split()[1]) * KIB
    assert info.python_version == sys.version.split()[0]
    assert info.python_executable == sys.executable
    assert (info.kernel, info.kernel_version, info.machine) == (
        os.uname().sysname,
        os.uname().release,
        os.uname().machine,
    )
    assert info.os


@needs_linux
@pytest.mark.parametrize("shell", SHELLS)
def test_probe_runs_from_standard_input(shell: list[str]) -> None:
    info = hardware.parse_probe_output(run(build_probe_script(), shell, stdin=True))
    assert info.cpu_cores > 0
    assert "the probe was cut short" not in info.warnings


@needs_linux
@pytest.mark.parametrize("shell", SHELLS)
def test_probe_skips_facts_the_supervisor_knows(shell: list[str], tmp_path: Path) -> None:
    for name in ("uname", "nproc"):
        write_program(tmp_path / name, "#!/bin/sh\necho of the program\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    known = {UNAME: "Linux 6.1.0-x+ x86_64", PROCESSORS: "1"}
    info = hardware.parse_probe_output(run(PROBE_SCRIPT, shell, path=path, env=known))
    assert (info.kernel, info.kernel_version, info.machine) == ("Linux", "6.1.0-x+", "x86_64")
    assert 0 < info.cpu_cores <= 1
    assert "of the program" not in run(PROBE_SCRIPT, shell, path=path, env=known)
    assert "\nof the program\n" in run(PROBE_SCRIPT, shell, path=path)


def test_known_facts_agree_with_the_programs() -> None:
    known = {name.decode(): value.decode() for name, value in known_facts().items()}
    commands = {
        UNAME: ["uname", "-srm"],
        PROCESSORS: ["env", "-u", "OMP_NUM_THREADS", "-u", "OMP_THREAD_LIMIT", "nproc"],
    }
    if sys.platform != "linux":
        del commands[PROCESSORS]
    assert known == {name: subprocess.check_output(argv, text=True).strip() for name, argv in commands.items()}


def test_probe_counts_cpus_of_affinity_mask() -> None:
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one processor")
    script = f"taskset -c {min(os.sched_getaffinity(0))} sh -c {shlex.quote(build_probe_script())}"
    assert hardware.parse_probe_output(run(script, ["sh"])).cpu_cores == 1.0


CGROUPS = [
    pytest.param(
        # Version 2, in a job of Slurm: github.com/NVIDIA/enroot/issues/169
        "0::/system.slice/slurmstepd.scope/job_4749/step_0/user/task_0\n",
        {
            "system.slice/slurmstepd.scope/job_4749/step_0/user/task_0/memory.max": "max",
            "system.slice/slurmstepd.scope/job_4749/step_0/user/memory.max": "4194304",
            "system.slice/slurmstepd.scope/job_4749/cpu.max": "50000 100000",
            "system.slice/cpu.max": "max 100000",
        },
        CgroupLimits(0.5, 4194304),
        id="v2-ancestors",
    ),
    pytest.param(
        "0::/\n",
        {"cpu.max": "15000 100000", "memory.max": "131072000"},
        CgroupLimits(0.15, 131072000),
        id="v2-namespace",
    ),
    pytest.param("0::/../../other\n", {}, CgroupLimits(), id="v2-outside-the-namespace"),
    pytest.param(
        # Version 1, in a container that sees the host's paths: github.com/duckdb/duckdb/pull/16608
        "9:cpu,cpuacct:/system.slice/containerd.service/pod.slice:cri-containerd:6ef1\n"
        "4:memory:/system.slice/docker-898b.scope\n1:name=systemd:/init.scope\n0::/\n",
        {
            "cpu/cpu.cfs_quota_us": "15000",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": "4194304",
        },
        CgroupLimits(0.15, 4194304),
        id="v1-container",
    ),
    pytest.param(
        "3:cpuacct,cpu:/user.slice/a b:c\n2:cpu_like,memory_like:/\n4:memory:/user.slice\n",
        {
            "cpu/user.slice/a b:c/cpu.cfs_quota_us": "25000",
            "cpu/user.slice/a b:c/cpu.cfs_period_us": "100000",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/user.slice/memory.limit_in_bytes": "9223372036854771712",
        },
        CgroupLimits(0.25, None),
        id="v1-host",
    ),
    pytest.param("", {}, CgroupLimits(), id="none"),
    pytest.param("0::relative\n", {"relative": "not a directory"}, CgroupLimits(), id="garbled"),
]


@needs_linux
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("membership", "files", "limits"), CGROUPS)
def test_probe_searches_control_groups_upwards(
    shell: list[str], membership: str, files: dict[str, str], limits: CgroupLimits, tmp_path: Path
) -> None:
    root, proc = tmp_path / "cgroup root", tmp_path / "self cgroup"
    proc.write_text(membership)
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n")
    script = build_probe_script().replace("/sys/fs/cgroup", f'"{root}"').replace("/proc/self/cgroup", f'"{proc}"')
    info = hardware.parse_probe_output(run(script, shell))
    if limits.cpus is not None:
        assert info.cpu_cores == limits.cpus
    else:
        assert info.cpu_cores >= 1
    if limits.memory is not None:
        assert info.memory == limits.memory
    else:
        assert info.memory > 16 * MIB


@pytest.mark.parametrize("shell", SHELLS)
def test_probe_without_proc_asks_as_on_macos(shell: list[str], tmp_path: Path) -> None:
    write_program(
        tmp_path / "sw_vers", "#!/bin/sh\nprintf 'ProductName:\\t\\tmacOS\\nProductVersion:\\t\\t13.5.1\\n'\n"
    )
    write_program(tmp_path / "sysctl", '#!/bin/sh\n[ "$*" = "hw.ncpu hw.memsize" ] && echo hw.memsize: 8589934592\n')
    script = build_probe_script().replace("/proc/meminfo", f"{tmp_path}/missing")
    info = hardware.parse_probe_output(run(script, shell, path=f"{tmp_path}:{os.environ['PATH']}"))
    assert (info.os, info.memory) == ("macOS 13.5.1", 8 * GIB)


@needs_linux
def test_probe_without_any_tool_still_answers(tmp_path: Path) -> None:
    info = hardware.parse_probe_output(run(build_probe_script(), ["sh"], path=str(tmp_path)))
    assert info.memory > 0  # the shell itself reads the files
    assert info.warnings == ("the number of CPU cores is unknown",) or info.cpu_cores
    assert info.python_version is None


NVIDIA_SMI = f"""\
#!/bin/sh
case "$1" in
    --query-gpu=*) printf '{HEADER.strip()}\\n0, NVIDIA H100 80GB HBM3, 81559, 590.48.01, {UUID}, [N/A]\\n' ;;
    -L) printf 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUID})\\n  MIG 1g.10gb     Device  0: (UUID: MIG-x)\\n' ;;
esac
"""


@pytest.mark.parametrize("shell", SHELLS)
def test_probe_nvidia_smi_lists_gpus(shell: list[str], tmp_path: Path) -> None:
    write_program(tmp_path / "nvidia-smi", NVIDIA_SMI.replace("%", "%%"))
    info = hardware.parse_probe_output(run(build_probe_script(), shell, path=f"{tmp_path}:{os.environ['PATH']}"))
    parts = (MigDevice(0, "1g.10gb", "MIG-x"),)
    assert info.gpus == (Gpu(0, "NVIDIA H100 80GB HBM3", 81559 * MIB, "590.48.01", UUID, None, parts),)
    assert info.warnings == ()


@pytest.mark.parametrize("shell", SHELLS)
def test_probe_nvidia_smi_failed_is_a_warning(shell: list[str], tmp_path: Path) -> None:
    write_program(
        tmp_path / "nvidia-smi", "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library @ mismatch'\nexit 18\n"
    )
    output = run(build_probe_script(), shell, path=f"{tmp_path}:{os.environ['PATH']}")
    assert "@@ lazycluster end gpus 18\n" in output
    assert "begin mig" not in output
    assert hardware.parse_probe_output(output).warnings == (
        "nvidia-smi: Failed to initialize NVML: Driver/library @ mismatch",
    )


def test_probe_nvidia_smi_runs_without_timeout_program(tmp_path: Path) -> None:
    write_program(tmp_path / "nvidia-smi", NVIDIA_SMI.replace("%", "%%"))
    write_program(tmp_path / "timeout", "#!/bin/sh\necho 'timeout: cannot execute 1'\nexit 127\n")  # an old busybox
    info = hardware.parse_probe_output(run(build_probe_script(), ["sh"], path=f"{tmp_path}:{os.environ['PATH']}"))
    assert info.gpu_count == 1


needs_timeout = pytest.mark.skipif(not shutil.which("timeout"), reason="there is no program timeout")


def build_script_with_short_timeouts() -> str:
    script = build_probe_script().replace("timeout 20", "timeout 2").replace("timeout 22", "timeout 3")
    assert "timeout 3 cat" in script
    return script


@needs_timeout
def test_probe_nvidia_smi_hanging_is_ended(tmp_path: Path) -> None:
    write_program(tmp_path / "nvidia-smi", f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 300\n")
    info = hardware.parse_probe_output(
        run(build_script_with_short_timeouts(), ["sh"], path=f"{tmp_path}:{os.environ['PATH']}")
    )
    assert info.warnings == ("nvidia-smi: no answer in time",)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@needs_timeout
@pytest.mark.parametrize("shell", SHELLS)
def test_probe_nvidia_smi_hanging_for_ever_is_left(shell: list[str], tmp_path: Path) -> None:
    # A process that hangs in the driver takes no signal; this one ignores SIGTERM.
    write_program(
        tmp_path / "nvidia-smi", f"#!/bin/sh\ntrap '' TERM\necho $$ >{tmp_path}/pid\necho half\nexec sleep 300\n"
    )
    try:
        info = hardware.parse_probe_output(
            run(build_script_with_short_timeouts(), shell, path=f"{tmp_path}:{os.environ['PATH']}")
        )
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert info.gpus == ()
    assert info.warnings == ("nvidia-smi: half", "nvidia-smi: no answer in time")


@pytest.mark.parametrize(
    ("python", "words"),
    [
        (None, f"python{sys.version_info.major}.{sys.version_info.minor} python3"),
        ("python3.9", "python3.9"),
        ("/opt/my python/bin/python", "'/opt/my python/bin/python'"),
        ("~/venv/bin/python", '"$HOME"/venv/bin/python'),
        ("~/a b/python", "\"$HOME\"/'a b/python'"),
        ("x; touch y", "'x; touch y'"),
        ("", "''"),
    ],
)
def test_probe_python_names_are_its_arguments(python: str | None, words: str) -> None:
    first, rest = build_probe_script(python).split("\n", 1)
    assert first == f"set -- {words}"
    assert rest == PROBE_SCRIPT


@pytest.mark.parametrize("shell", SHELLS)
def test_probe_python_broken_one_is_skipped(shell: list[str], tmp_path: Path) -> None:
    wanted = f"python{sys.version_info.major}.{sys.version_info.minor}"
    write_program(tmp_path / wanted, "#!/bin/sh\necho 'pyenv: version not installed'\nexit 127\n")
    write_program(tmp_path / "python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    info = hardware.parse_probe_output(run(build_probe_script(), shell, path=f"{tmp_path}:{os.environ['PATH']}"))
    assert info.python_version == sys.version.split()[0]


@pytest.mark.parametrize("shell", SHELLS)
def test_probe_python_in_home_is_found(shell: list[str], tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    write_program(tmp_path / "a b" / "python", "#!/bin/sh\necho '3.12.1 /somewhere'\n")
    info = hardware.parse_probe_output(run(build_probe_script("~/a b/python"), shell, env={"HOME": str(tmp_path)}))
    assert (info.python_version, info.python_executable) == ("3.12.1", "/somewhere")


@pytest.mark.parametrize("python", ["", "-c", "/no such/python", "x; echo 3.12.1"])
def test_probe_python_missing_is_none(python: str) -> None:
    info = hardware.parse_probe_output(run(build_probe_script(python), ["sh"]))
    assert (info.python_version, info.python_executable) == (None, None)


def test_probe_script_has_no_awkward_characters() -> None:
    assert not set("'\\!") & set(PROBE_SCRIPT)
