"""Prices a European option by Monte Carlo simulation, and reports its progress while it does."""

import math
import random

PAIRS_A_BATCH = 10_000
SECONDS_TO_FINISH = 0.5


def price(option, context):
    """`option` has been checked against the input schema of skill-runtime.yaml; the defaults stand here too."""
    samples = option.get("samples", 200_000)
    draw = random.Random(option.get("seed", 1))
    payoff = payoff_of(option)
    total = squares = 0.0
    done, told, pairs = 0, 0, samples // 2
    while done < pairs:
        for _ in range(min(PAIRS_A_BATCH, pairs - done)):
            z = draw.gauss(0.0, 1.0)
            value = (payoff(z) + payoff(-z)) / 2
            total += value
            squares += value * value
            done += 1
        out_of_time = context.deadline < SECONDS_TO_FINISH and done < pairs
        if out_of_time or 10 * done // pairs > told:
            told = 10 * done // pairs
            estimate, error = mean_and_error(total, squares, done)
            context.progress(done / pairs, f"{2 * done:,} of {samples:,} samples")
            context.info("estimate", price=round(estimate, 4), standard_error=round(error, 4))
        if out_of_time:
            context.warning("out of time; this is the estimate so far", samples=2 * done)
            break
    estimate, error = mean_and_error(total, squares, done)
    return {
        "price": estimate,
        "standard_error": error,
        "interval_95": [estimate - 1.96 * error, estimate + 1.96 * error],
        "exact": black_scholes(option),
        "samples": 2 * done,
    }


def terms(option):
    years, rate, volatility = option.get("years", 1), option.get("rate", 0.03), option.get("volatility", 0.2)
    return option["spot"], option["strike"], years, rate, volatility, 1 if option.get("kind", "call") == "call" else -1


def payoff_of(option):
    """From a normal variate to the discounted payoff of the path it stands for."""
    spot, strike, years, rate, volatility, sign = terms(option)
    drift = (rate - volatility**2 / 2) * years
    spread = volatility * math.sqrt(years)
    discount = math.exp(-rate * years)
    return lambda z: discount * max(0.0, sign * (spot * math.exp(drift + spread * z) - strike))


def mean_and_error(total, squares, count):
    mean = total / count
    variance = max(0.0, squares / count - mean * mean)
    return mean, math.sqrt(variance / count)


def black_scholes(option):
    spot, strike, years, rate, volatility, sign = terms(option)
    d1 = (math.log(spot / strike) + (rate + volatility**2 / 2) * years) / (volatility * math.sqrt(years))
    d2 = d1 - volatility * math.sqrt(years)
    value = sign * (spot * normal(sign * d1) - strike * math.exp(-rate * years) * normal(sign * d2))
    return max(0.0, value)


def normal(x):
    return math.erfc(-x / math.sqrt(2)) / 2
