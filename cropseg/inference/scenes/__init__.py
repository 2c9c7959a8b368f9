"""What is mapped: images from anywhere, brought to the model."""
