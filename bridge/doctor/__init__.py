"""`modal-prefect doctor`: what an expert would look at, each a small check that finds something and says the fix.

A check is a generator of :class:`~bridge.doctor.finding.Finding` about a :class:`~bridge.doctor.patient.Patient`;
:data:`bridge.doctor.examination.CHECKS` has them in order. Nothing here changes anything.
"""
