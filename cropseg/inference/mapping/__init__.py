"""From scenes to finished maps: one process, or a cluster."""
