"""One file a command: its flags as a dataclass, one call of the library, its table or JSON."""
