"""Where pictures come from, how they are cropped, and how they reach a device."""
