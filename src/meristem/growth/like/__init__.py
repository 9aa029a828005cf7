"""From a published config to the growth that leads there."""
