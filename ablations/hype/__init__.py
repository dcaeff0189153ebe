"""Human evaluation (HYPE∞): packing dumps, the rating page, and scores from ratings."""
