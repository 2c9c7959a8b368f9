"""The one forward path over tiles and scenes."""
