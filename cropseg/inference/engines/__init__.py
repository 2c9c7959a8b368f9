"""What runs a model on tiles: Keras or OpenVINO."""
