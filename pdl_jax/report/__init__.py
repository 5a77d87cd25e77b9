"""From the records of finished runs to tables, with honest uncertainty."""
