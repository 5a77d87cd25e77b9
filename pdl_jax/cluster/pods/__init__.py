"""Machines of others: the commands that start a run on each host of a pod."""
