"""How a scene is cut, predicted and joined again."""
