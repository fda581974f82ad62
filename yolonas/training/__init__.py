"""The parts of training, each for itself: pictures (`augment`, `loader`), which predictions answer for which boxes
(`assigner`) and the loss that follows (`loss`), steps (`step`, `optimizer`, `schedule`, `ema`), quantised networks
(`fake_quant`), several processes (`processes`), and what a run keeps (`state`, `table`). Plain torch, on any device.
What runs them is elsewhere.
"""
