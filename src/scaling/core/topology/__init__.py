"""Where a process stands: layout, launcher, rendezvous, device, process groups and random streams."""
