"""Run work on other machines over nothing but the system's own OpenSSH client."""
