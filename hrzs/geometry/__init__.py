"""Hyperbolic geometry: the Poincaré ball and the margins it gives. Imports nothing else of hrzs."""
