"""Why a trained network is wrong: its mistakes, their class activation maps, and a page that shows them.

In: a trained network and a test set. Out: a directory of pictures, `manifest.json`, `cams.npz` and `report.html`
(`outputs`). `cam` is the mathematics of the maps, `explanation` the choice of images and the gradients.
"""
