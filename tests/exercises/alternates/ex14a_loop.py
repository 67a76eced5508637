"""Row by row, without a tensor of differences."""


def first_flip(ours, theirs):
    for row in range(len(ours)):
        mine, other = int(ours[row].argmax()), int(theirs[row].argmax())
        if mine != other:
            return [row, float(theirs[row][other]) - float(theirs[row][mine])]
    return None
