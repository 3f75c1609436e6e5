"""What all scripts share: settings, a run's folder, files, the epoch loop."""
