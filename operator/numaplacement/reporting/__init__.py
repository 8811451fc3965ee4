# SPDX-License-Identifier: Apache-2.0
"""From the engine's words to the API's: what agent and host command both say of a verdict. Pure."""
