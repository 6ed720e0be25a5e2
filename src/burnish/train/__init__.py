"""The one loop, and what stands around it: optimiser, checkpoints, hooks, trackers, the memory plan."""
