// GOAL objectives: triplet weights, pair weights and potentials (eqs. 5 to 8, docs/maths.md).
#pragma once
#include <stdint.h>

#include "params/goal.h"

// 1 / (1 + exp(-z)), by the sign of z so that no exponential overflows.
__device__ __forceinline__ float logistic(float z) {
    const float e = expf(-fabsf(z));
    return (z >= 0.0f ? 1.0f : e) / (1.0f + e);
}

// log(1 + exp(z)); NaN for NaN, which fmax alone would drop.
__device__ __forceinline__ double softplus(double z) { return (z < 0.0 ? 0.0 : z) + log1p(exp(-fabs(z))); }

// 1 / (exp(-z) + r), by the sign of z for the same reason; r >= 0.
__device__ __forceinline__ float bounded_exponential(float z, float r) {
    if (z <= 0.0f) {
        const float e = expf(z);
        return e / (1.0f + r * e);
    }
    return 1.0f / (expf(-z) + r);
}

// What the circle is about: N^2 + (1 - P)^2 - offset.
template <typename V>
__device__ __forceinline__ V circle(V positive, V negative, V offset) {
    return negative * negative + (V(1) - positive) * (V(1) - positive) - offset;
}

// T(P, N); NaN if either is.
__device__ __forceinline__ float triplet_weight(const ObjectiveParams& o, float positive, float negative) {
    if (positive != positive || negative != negative) return positive + negative;
    switch (o.triplet) {
        case kTripletHinge:
            return float(o.margin) + negative - positive > 0.0f ? 1.0f : 0.0f;
        case kTripletNca:
            return logistic(float(o.tau) * (negative - positive));
        case kTripletCir:
            return logistic(float(o.tau) * circle(positive, negative, float(o.offset)));
        default:
            return 1.0f;
    }
}

// w+(P) with the relative similarity R+, which only the _ms weights look at.
__device__ __forceinline__ float positive_weight(const ObjectiveParams& o, float positive, float relative) {
    const float z = -float(o.alpha) * (positive - float(o.lambda));
    switch (o.pair) {
        case kPairLin:
            return 1.0f - positive;
        case kPairSig:
            return logistic(z);
        case kPairLinMs:
            return (1.0f - relative) * (1.0f - positive);
        case kPairSigMs:
            return bounded_exponential(z, relative);
        default:
            return 1.0f;
    }
}

// w-(N) with the relative similarity R-.
__device__ __forceinline__ float negative_weight(const ObjectiveParams& o, float negative, float relative) {
    const float z = float(o.beta) * (negative - float(o.lambda));
    switch (o.pair) {
        case kPairLin:
            return negative;
        case kPairSig:
            return logistic(z);
        case kPairLinMs:
            return (1.0f + relative) * negative;
        case kPairSigMs:
            return bounded_exponential(z, relative);
        default:
            return 1.0f;
    }
}

// The triplet's part of the reported loss.
__device__ __forceinline__ double triplet_loss(const ObjectiveParams& o, double positive, double negative) {
    const double difference = negative - positive;
    if (!o.potential) return difference;
    switch (o.triplet) {
        case kTripletHinge: {
            const double z = o.margin + difference;
            return z < 0.0 ? 0.0 : z;
        }
        case kTripletNca:
            return softplus(o.tau * difference) / o.tau;
        case kTripletCir:
            return softplus(o.tau * circle(positive, negative, o.offset)) / (2.0 * o.tau);
        default:
            break;
    }
    switch (o.pair) {
        case kPairLin:
            return circle(positive, negative, 0.0) / 2.0;
        case kPairSig:
            return softplus(-o.alpha * (positive - o.lambda)) / o.alpha + softplus(o.beta * (negative - o.lambda)) / o.beta;
        default:
            return difference;
    }
}
