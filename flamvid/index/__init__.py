"""Whole libraries of videos: into a feature store, and found again by what they show."""
