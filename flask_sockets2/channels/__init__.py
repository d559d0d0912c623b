"""Publishing and subscribing, for one application or for a program without one."""
