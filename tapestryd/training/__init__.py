"""The arithmetic: torch and numbers. Knows nothing of peers, sockets, clocks or asyncio."""
