"""One sweep from settings to report: its folder and lock, its stages, and the driver that goes through them."""
