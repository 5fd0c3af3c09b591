"""The system's OpenSSH client: records, argument vectors, processes, and what they said."""
