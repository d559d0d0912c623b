"""Which clients may connect, how many of them, and which have to leave."""
