"""Turns the records of finished runs into tables with honest uncertainty."""
