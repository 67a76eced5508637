"""Takes the likeliest token again and again until p is reached; keeps as few of equal tokens as it can."""


def top_p(probs, p):
    left, cut, mass = probs.double(), probs.clone().double() * 0, 0.0
    while (mass < p or p == 1) and left.max() > 0:
        token = left.argmax()
        cut[token] = left[token]
        mass += left[token].item()
        left[token] = 0.0
    return (cut / cut.sum()).to(probs.dtype)
