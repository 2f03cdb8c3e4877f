"""A phase diagram by slow quadrature in NumPy and SciPy, to hold theory against."""
