"""Frontends for someone who sits at a terminal; they need chairlift[terminal]."""
