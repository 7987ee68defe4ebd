"""The search for better settings of `[train]`: what is tried, how each trial is judged, and what came out."""
