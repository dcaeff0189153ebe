"""What runs any study: stages and their store, jobs, manifests, progress, failures, one launcher.

Nothing here knows a paper: :class:`~ablations.engine.study.Study` is what one brings, and
:class:`~ablations.engine.job.Job` what an executor has to know of a piece of its work.
"""
