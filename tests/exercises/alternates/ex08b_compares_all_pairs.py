"""No order at all: a token stays if those likelier than it have less than p. Keeps all that are equal."""


def top_p(probs, p):
    likelier = (probs[None, :] > probs[:, None]).double() @ probs.double()  # (V,)
    kept = probs * ((likelier < p) | (p == 1))
    return kept / kept.sum()
