"""How the embedded model is made: text, voices, features, training, export and scoring."""
