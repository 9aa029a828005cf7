"""Studies whose sides end at one figure for each task, converged, rather than at losses along a budget of compute."""
