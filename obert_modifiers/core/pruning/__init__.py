"""From gradients to pruned weights: one vocabulary, and the steps of an event.

Names and shapes, here and in :mod:`obert_modifiers.kernels`:

- ``d`` (``numel``): weights of a parameter, or of a piece of it.
- ``B`` (``fisher_block_size``): width of a Fisher block; ``num_blocks = ceil(d / B)``.
- ``Q`` (``group_size``): weights of a group, M of N:M; divides B, ``d / Q`` groups.
- ``m`` (``num_grads``): gradients that were added. ``scale = 1 / m``.
- ``damp``: lambda > 0, in the unit of squared gradients.
- ``g``, ``grads``: gradients of single samples, ``(k, d)``; in blocks
  ``(k, num_blocks, B)``.
- ``sums``: S, the sum of ``g g^T`` inside each block, ``(num_blocks, B, B)``. The
  dampened Fisher ``F = damp I + scale S`` is never stored.
- ``f_inv``: its inverse, ``(num_blocks, B, B)``, or the ``(num_blocks, B / Q, Q, Q)``
  group blocks on its diagonal; float64.
- ``w``, ``weights``: ``(num_blocks, B)`` in kernels; ``(d,)`` or ``(d / Q, Q)`` here.
- ``mask``, ``kept``: bool, True = kept, shape of the weights.
- ``saliency``: predicted loss increase, float64; infinite for what cannot be pruned.

Weights are in the order of the groups (:class:`~.blocks.GroupLayout`), which for groups
of one row is that of the parameter.

:func:`~.pruning_step.second_order_step_` prunes once. On one process:

1. Plan (:func:`~.event.plan_targets`): cut the parameters into pieces of whole Fisher
   blocks, and see in how many turns their ``sums`` fit into memory.
2. Gradients (:func:`~.gradients.collect_gradients`): run batches; of each Linear layer
   keep inputs and output gradients, of which ``g`` is made.
3. Fisher (:class:`~.collect.Collector`): form ``g`` of a piece and add ``g g^T`` to its
   ``sums`` (:class:`~.fisher.BlockFisher`).
4. Saliency (:mod:`~.saliency`): of each weight or group, piece by piece.
5. Selection (:func:`~.selection.choose`): those of lowest saliency, to an exact count.
6. Update (:mod:`~.update`): the new values of the weights that stay; with ``update:
   row`` fitted again over whole rows (:func:`~.rows.fit_rows`).
7. Write (:func:`~.targets.write_parameters_`).

:class:`~.event.PruningEvent` calls 4 to 6 for each piece of a
:class:`~.fisher_state.FisherState`, which does 2 and 3 when it is first asked. To read
that way, nothing else is needed. Beside it lie:

- turns, where not all ``sums`` fit into memory: the state repeats 2 and 3 for each;
- processes, of which each owns some of the pieces: :mod:`~.exchange` sends inputs and
  output gradients to the owners, selection adds up counts, the owners' results are
  joined, and ``raise_on_all_ranks`` lets none wait for another that failed;
- rollback: ``restored`` takes back what was written before an error, and an event that
  runs out of memory starts again with a smaller plan.

The bits are the same under every plan and on any number of processes; only the weights
of ``update: row`` are rounded otherwise where each process has other samples.
"""

from obert_modifiers.core import importing

__getattr__ = importing(__name__)
