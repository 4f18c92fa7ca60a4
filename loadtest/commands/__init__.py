"""The sub-commands of `fovea loadtest`, one module each."""
