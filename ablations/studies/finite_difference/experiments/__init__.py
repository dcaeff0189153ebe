"""What each kind of trial computes: settings in, numbers and files out."""
