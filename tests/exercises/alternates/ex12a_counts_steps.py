"""Step after step, as the engine would."""


def steps_until_seat(running, waiting, seats):
    running, waiting = list(running), list(waiting)
    for step in range(10**6):
        while len(running) < seats and waiting:
            running.append(waiting.pop(0))
        if len(running) < seats:
            return step
        running = [left - 1 for left in running if left > 1]
