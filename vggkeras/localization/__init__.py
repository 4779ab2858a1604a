"""Boxes around the object of an image's class, as in Appendix A: geometry, loss and metrics."""
