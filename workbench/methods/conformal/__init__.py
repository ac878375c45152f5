"""Distribution-free risk control and calibrated probability."""
