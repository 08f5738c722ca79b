"""How the embedded base is made: its architecture, its conversations, its training, its scores."""
