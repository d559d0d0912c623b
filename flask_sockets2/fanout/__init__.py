"""A channel's subscribers in this process, and the messages still to be sent to each of them."""
