"""A channel's subscribers in this process, and what each of them still has to get."""
