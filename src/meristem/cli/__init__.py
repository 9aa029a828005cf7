"""The command line: thin. It parses, calls and prints; torch is imported only inside a command."""
