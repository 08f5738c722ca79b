"""The built-in tasks: drawn scenes of tools and parts, and questions about them."""
