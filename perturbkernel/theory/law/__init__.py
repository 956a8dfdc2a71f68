"""The law of one neuron: trained networks of every width and time, lazy or not (theory: 14).

With the identity loss the neurons of a network never interact. A trained network is a sum of
independent terms of one law, which a pool of simulated neurons samples:

    f_T(z) = (1/sqrt(width)) sum_i alpha_i phi(u(alpha_i r; theta_i, z)),   r = T / sqrt(width),

alpha_i standard normal, theta_i = (w_i, b_i) a neuron's initial weights and bias, and u(s; theta,
z) its pre-activation at z after signed time s.

    law = pk.theory.simulate_neurons(
        kernel, x, y, dynamics=pk.HeavyBall(0.01, 100), width=100, neurons=4000, key=key
    )
    law.mean(z, width=100, time=9.1)        # Estimate: value, standard_error, mean, ...
    law.std(z, width=100, start="centred")  # time left out: the largest; start: as in `certify`
    law.draw(width=100, key=key)            # a TwoLayerNetwork with the law of a trained one
    law.networks(40, width=100, key=key)    # 40 independent ones, arrays (40, width, ...)
    law.mean_network(width=100)             # E f as a predictor: features that moved, no noise

The pool itself, for what needs more than moments (all float64 NumPy; signs is 2 for an antithetic
pool, whose second axis of k starts is the independent one, else 1):

    pool = law.neurons(width=100, time=9.1, rows=slice(0, 500))   # or law.at(r, rows)
    pool.readout    # (signs, k), alpha: a_i = alpha_i / sqrt(width)
    pool.start      # (k, d + 1), initial weights and bias
    pool.moved      # (signs, k, d + 1), trained less initial;  pool.trained = start + moved
    pool.terms(z)   # (signs, k, m), alpha phi(u(alpha r; theta, z)); centred=True: less the start's
    pool.blocks(m)  # slices of m queries for which (signs, k, queries) numbers fit

Rows of one pool are independent, so that disjoint slices are independent pools. For independent
neurons alone, without pairs, simulate with antithetic=False.

| module      | what                                                                      |
| ----------- | ------------------------------------------------------------------------- |
| `simulate`  | `simulate_neurons`, `plan_neurons`                                        |
| `paths`     | neurons in scaled time: descent as it is, flow, in tiles and on meshes    |
| `neurons`   | a pool at one scaled time, and its one-neuron outputs                     |
| `moments`   | averages over a pool, with closed forms as control variates               |
| `estimates` | numbers with their standard errors                                        |
| `gradients` | input gradients: their mean, length and cosine                            |
| `cuts`      | whole networks cut from a pool                                            |
| `pool`      | neurons at every scaled time                                              |
| `law`       | `NeuronLaw`: mean, deviation, covariance, accuracy, gradients, networks   |
| `mean_field` | the deterministic limit as a learner, for every loss                      |
| `drawn`     | whole networks, drawn and trained, of which outputs alone are kept        |
| `holdout`   | which signs hold together, by exact binomial bounds                       |
| `certify`   | certificates without laziness, for one network and for the experiment     |
| `certificates` | what they say                                                          |
"""

from perturbkernel.theory.law.certificates import ExperimentCertificate as ExperimentCertificate
from perturbkernel.theory.law.certificates import SignCertificate as SignCertificate
from perturbkernel.theory.law.certificates import Simulation as Simulation
from perturbkernel.theory.law.certify import certify_experiment as certify_experiment
from perturbkernel.theory.law.certify import certify_network as certify_network
from perturbkernel.theory.law.certify import certify_outputs as certify_outputs
from perturbkernel.theory.law.estimates import Estimate as Estimate
from perturbkernel.theory.law.gradients import GradientMoments as GradientMoments
from perturbkernel.theory.law.law import NeuronLaw as NeuronLaw
from perturbkernel.theory.law.mean_field import MeanFieldLearner as MeanFieldLearner
from perturbkernel.theory.law.neurons import Neurons as Neurons
from perturbkernel.theory.law.simulate import NeuronPlan as NeuronPlan
from perturbkernel.theory.law.simulate import plan_neurons as plan_neurons
from perturbkernel.theory.law.simulate import simulate_neurons as simulate_neurons
