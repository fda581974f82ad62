"""What training adds to a network: which predictions answer for which labelled boxes, and the loss that follows.
Plain torch, on any device. Reading pictures, optimisers and schedules are elsewhere.
"""
