"""From a laptop to a pod: several hosts, checked before and watched while."""
