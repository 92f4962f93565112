"""For Django projects."""
