"""The parts of training, each for itself: pictures (`augment`, `loader`), which predictions answer for which boxes
(`assigner`) and the loss that follows (`loss`), steps (`step`, `optimizer`, `schedule`, `ema`), and what a resume needs
(`state`). Plain torch, on any device. What runs them is elsewhere.
"""
